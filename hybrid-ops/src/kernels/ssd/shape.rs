//! Lengths of a scan, and which of them the kernels take.

use burn_backend::DType;

use super::call::Call;
use super::plan::{Plan, WIDTH};

/// Lengths of a scan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SsdShape {
    /// Sequences.
    pub batch: usize,
    /// Tokens of each.
    pub seq: usize,
    /// Heads.
    pub heads: usize,
    /// Channels of a head.
    pub head_dim: usize,
    /// Groups of heads that share B and C.
    pub groups: usize,
    /// States of a channel.
    pub d_state: usize,
    /// Tokens of a chunk at most, rounded up to a power of two; the kernels may take fewer, down to
    /// 16. Results depend on it by rounding only.
    pub chunk_len: usize,
}

impl SsdShape {
    /// Why the kernels do not take these lengths, if they do not.
    ///
    /// # Errors
    /// One line, with the length.
    pub fn check(&self) -> Result<(), String> {
        let named = [
            ("batch", self.batch),
            ("seq", self.seq),
            ("heads", self.heads),
            ("head_dim", self.head_dim),
            ("groups", self.groups),
            ("d_state", self.d_state),
            ("chunk_len", self.chunk_len),
        ];
        if let Some((name, _)) = named.iter().find(|(_, len)| *len == 0) {
            return Err(format!("ssd: {name} is 0, it has to be positive"));
        }
        if !self.heads.is_multiple_of(self.groups) {
            let (heads, groups) = (self.heads, self.groups);
            return Err(format!(
                "ssd: {heads} heads cannot be shared out among {groups} groups"
            ));
        }
        for (name, len) in [("head_dim", self.head_dim), ("d_state", self.d_state)] {
            if !len.is_multiple_of(WIDTH) {
                return Err(format!(
                    "ssd: {name} is {len}, it has to be a multiple of {WIDTH}"
                ));
            }
        }
        let call = Call::of(*self);
        let Plan { heads, tokens, .. } = call.plan;
        let largest = [
            self.batch * self.seq * call.plan.columns(),
            call.chunks() * heads * tokens * tokens,
            call.chunks() * call.plan.states(),
        ];
        if largest.iter().any(|len| u32::try_from(*len).is_err()) {
            return Err(format!(
                "ssd: a tensor of {self:?} has 2^32 elements or more"
            ));
        }
        if u16::try_from(call.chunks()).is_err() {
            let chunks = call.chunks();
            return Err(format!(
                "ssd: {chunks} chunks, the kernels take 65535 at most"
            ));
        }
        Ok(())
    }

    /// Columns of x, B and C together.
    pub const fn columns(&self) -> usize {
        self.channels() + 2 * self.groups * self.d_state
    }

    /// Columns of x and y.
    pub const fn channels(&self) -> usize {
        self.heads * self.head_dim
    }
}

/// Shapes and dtypes of what forward saves: the states before each chunk in the activation dtype,
/// dt and the decays along each chunk.
pub fn saved_shapes(shape: &SsdShape, activation: DType) -> Vec<(Vec<usize>, DType)> {
    let call = Call::of(*shape);
    let Plan { heads, tokens, .. } = call.plan;
    let states = vec![call.chunks(), call.plan.channels(), call.plan.d_state];
    let line = vec![call.chunks(), heads, tokens];
    vec![
        (states, activation),
        (line.clone(), DType::F32),
        (line, DType::F32),
    ]
}
