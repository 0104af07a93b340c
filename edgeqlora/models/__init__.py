"""Model families: one package each, named like config.json's `model_type`, behind the protocols of family.py."""
