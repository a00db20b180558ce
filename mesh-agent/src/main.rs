//! Arguments → Config → Agent → signal → drain.

fn main() {}
