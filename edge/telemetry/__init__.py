"""What the node tells the fleet, and how none of it is lost: records, the outbox on disk, the uplink over MQTT."""
