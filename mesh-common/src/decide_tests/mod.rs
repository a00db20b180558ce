//! Tables and properties of the decision; the kernel suite asks the loaded programs the same.

mod connect;
mod lookup;
mod policy;

use super::*;
use crate::value::BROKEN_POLICY;

const RULES: Digest = [1; 16];
const ME: Digest = [2; 16];
const OTHER: Digest = [3; 16];
