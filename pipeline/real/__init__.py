"""Real input: small cubes of real Sentinel data through the same functions as the planet."""
