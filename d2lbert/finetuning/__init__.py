"""Fine-tuning a pretrained BERT: recipes, training, runs, inference."""
