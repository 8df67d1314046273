"""Publishes versions of the catalog as repositories of the Hugging Face Hub: layout, card, preview, push."""
