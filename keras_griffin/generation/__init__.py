"""How a model makes text: functions of a `GriffinCausalLM`."""
