"""The protocols a server speaks: one module each. Worker processes import their codecs, and nothing of HTTP."""
