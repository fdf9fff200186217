"""The app: answers, conversations, judgements, the history of runs, and the tabs that show them."""
