//! `TransactionOps`, forwarded.

#![deny(clippy::missing_trait_methods)]

use burn_backend::ExecutionError;
use burn_backend::ops::{TransactionOps, TransactionPrimitive, TransactionPrimitiveData};

use crate::decorator::backend::Nvfp4;
use crate::decorator::rewrap::Rewrap;
use crate::engine::Nvfp4Engine;

impl<B: Nvfp4Engine> TransactionOps<Self> for Nvfp4<B> {
    fn tr_execute(
        transaction: TransactionPrimitive<Self>,
    ) -> impl Future<Output = Result<TransactionPrimitiveData, ExecutionError>> + Send {
        <B as TransactionOps<B>>::tr_execute(transaction.rewrap())
    }
}
