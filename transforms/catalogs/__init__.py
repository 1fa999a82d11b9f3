"""Catalogues: what each provider's records mean, one table of facts a module, and how they are searched."""
