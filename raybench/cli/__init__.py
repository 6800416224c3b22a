"""What the front door is made of."""
