"""What a pretrained network knows, on text that it was not trained on."""
