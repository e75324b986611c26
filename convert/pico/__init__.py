"""How pico, the model that the package carries, was trained. Nothing else imports this; it needs torch."""
