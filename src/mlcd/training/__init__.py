"""What every stage that trains a network shares: the gang, ZeRO, data order, rates, metrics."""
