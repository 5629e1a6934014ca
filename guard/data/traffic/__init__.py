"""The bank of software traffic: innocent texts that clients, agents and programs send to models."""
