"""Connections to the device: this machine, OpenSSH and adb behind one base class."""
