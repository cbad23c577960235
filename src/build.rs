//! Lists the plug-ins, so that adding one is adding one file.
fn main() {}
