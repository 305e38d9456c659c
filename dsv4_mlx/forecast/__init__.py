"""How long a decoded token will take: predicted from counted work and a machine's figures. Pure."""
