"""What runs a model behind the endpoints: services, their batches, and how they are built."""
