"""Where a request is answered: here, by the fleet, or not now."""
