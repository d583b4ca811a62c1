//! The exchange by all-reduce between devices: NCCL on CUDA.
//!
//! burn's primitive works on one tensor, in place where nobody else holds it, on a stream of its
//! own, and needs one synchronisation behind them all. The ranks call it from their own threads in
//! the order of the parameters, which is the same on each. Every rank gets the same bits: a part of
//! a sum is made on one device and copied to the others.

use burn::tensor::backend::distributed::{DistributedBackend, ReduceOperation};
use burn::tensor::backend::{DeviceId, DeviceOps};
use burn::tensor::ops::FloatTensor;
use burn_hybrid_ops::TrainingEngine;

use super::meeting::{Seat, seats};
use super::{Exchange, RankLost, Word};

/// One rank's end of an exchange between devices.
#[derive(Debug)]
pub struct Collective<D> {
    words: Seat<Word>,
    all: Vec<DeviceId>,
    device: D,
}

/// An exchange between different devices, a rank each.
pub fn between<D: DeviceOps>(devices: Vec<D>) -> Vec<Collective<D>> {
    let all: Vec<_> = devices.iter().map(DeviceOps::id).collect();
    let ends = seats(devices.len()).zip(devices);
    ends.map(|(words, device)| Collective {
        words,
        all: all.clone(),
        device,
    })
    .collect()
}

impl<B> Exchange<B> for Collective<B::Device>
where
    B: TrainingEngine<InnerBackend: DistributedBackend>,
{
    fn rank(&self) -> usize {
        self.words.rank()
    }

    fn ranks(&self) -> usize {
        self.all.len()
    }

    fn gather(&self, word: Word) -> Result<Vec<Word>, RankLost> {
        self.words.gather(word).map(|words| words.to_vec())
    }

    fn sum(
        &self,
        tensors: Vec<FloatTensor<B::InnerBackend>>,
    ) -> Result<Vec<FloatTensor<B::InnerBackend>>, RankLost> {
        // A device that is gone would keep the others in the collective for ever.
        self.words.gather(Word::default())?;
        let sum = |tensor| {
            let op = ReduceOperation::Sum;
            let sum = B::InnerBackend::all_reduce(tensor, op, self.all.clone());
            // SAFETY: nothing reads the handle before `sync_collective` below, on the device whose
            // tensors these are and on the thread that has made them.
            unsafe { sum.assume_resolved() }
        };
        let sums = tensors.into_iter().map(sum).collect();
        B::InnerBackend::sync_collective(&self.device);
        Ok(sums)
    }
}
