"""The testbed with a pretrained decoder: SmolLM2-135M-Instruct, adapted to the base testbed's tower."""
