"""Pictures compared with one another: arrays in, evidence out; knows no store."""
