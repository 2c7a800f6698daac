"""What an interval, a bin axis and a contact map are; arrays only."""
