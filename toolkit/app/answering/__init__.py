"""Answers: the request, the engine that generates them, and their numbers."""
