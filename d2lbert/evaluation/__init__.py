"""What a pretrained network knows, and what it is good for."""
