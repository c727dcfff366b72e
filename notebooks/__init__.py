"""The chapter as notebooks, and what builds them."""
