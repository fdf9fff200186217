"""The app's tabs: layout and events, one file for each; what they do is a level up."""
