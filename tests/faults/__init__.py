"""What can break is broken for real: processes are killed and connections cut under load."""
