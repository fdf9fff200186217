"""The app: answers, judgements and the history of runs, and the tabs that show them."""
