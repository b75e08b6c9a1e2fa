"""A release in the forms that other updaters take: MCUboot, RAUC, SWUpdate."""
