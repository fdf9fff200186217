"""The web server: launch, middleware, the page's script, and a smoke test."""
