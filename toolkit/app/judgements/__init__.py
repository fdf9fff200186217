"""What people say of answers: drawn blind, stored, rated, exported to train on."""
