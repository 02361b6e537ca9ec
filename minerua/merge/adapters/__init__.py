"""Adapters: LoRA adapters merged into one, and made of full fine-tunes."""
