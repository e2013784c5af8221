"""OpenVINO: a configuration as its intermediate representation, with packed weights."""
