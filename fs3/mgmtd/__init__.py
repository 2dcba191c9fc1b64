"""The cluster manager: who is alive, which target serves which chain."""
