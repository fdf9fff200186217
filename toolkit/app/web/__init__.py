"""The web server: launch, middleware, the page's scripts, and a smoke test."""
