"""`edge bench`: measures any server that speaks the OpenAI API, from outside and like any other client."""
