"""The app's tabs: layout and events, one file for each tab; the logic is in the parent package."""
