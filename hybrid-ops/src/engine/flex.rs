//! Flex: compositions.

use burn_flex::Flex;

use super::HybridEngine;

impl HybridEngine for Flex {}
