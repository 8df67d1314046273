"""Studies: people rate personas and responses blind, and what they say is measured."""
