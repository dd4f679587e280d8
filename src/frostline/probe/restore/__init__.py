"""Put back, bit for bit, whatever a look at a model may change."""
