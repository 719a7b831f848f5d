"""`mlcd STAGE --plan`: memory and time of a stage, said before it starts. One module per stage."""
