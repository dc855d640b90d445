//! What is stored in another way than the pool stores by itself.
//!
//! A policy is a number that stands for how something is stored; what it stands for never changes. Files carry the number of
//! theirs, and so do segments: a segment holds only what follows one policy, and so does each domain of the dedup index.

use crate::StoreError;
use crate::store::Store;
use crate::tables::Tables;
use aegisfs_base::{BranchId, PolicyId};
use aegisfs_format::key::{Table, prefix_end};
use aegisfs_format::op::Op;
use aegisfs_format::value::Policy;
use aegisfs_pool::{PoolError, Redundancy};
use parking_lot::{Mutex, RwLock};
use std::collections::BTreeMap;
use std::ops::ControlFlow;

/// How the keys begin, in the configuration; the number follows, big-endian.
const KEY: &[u8] = b"policy/";

/// The policies that there are, but for the pool's own.
#[derive(Debug, Default)]
pub(crate) struct Policies {
    known: RwLock<BTreeMap<PolicyId, Redundancy>>,
    /// Held by whoever makes one.
    making: Mutex<()>,
}

fn key_of(policy: PolicyId) -> Vec<u8> {
    [KEY, &policy.0.to_be_bytes()].concat()
}

impl Store {
    /// Reads the policies.
    pub(crate) fn load_policies(&self) -> Result<(), StoreError> {
        let mut known = BTreeMap::new();
        let mut problem = None;
        self.view().scan(Table::Config, KEY, prefix_end(KEY).as_deref(), &mut |key, stored| {
            let number = key[KEY.len()..].try_into().map(u16::from_be_bytes);
            match (number, Policy::decode(stored)) {
                (Ok(number), Ok(Policy { shards_data, shards_parity })) => {
                    known.insert(PolicyId(number), Redundancy { shards_data, shards_parity });
                    ControlFlow::Continue(())
                }
                (_, outcome) => {
                    let what = "a policy has a key that is none".to_owned();
                    problem = Some(outcome.err().map_or(StoreError::Inconsistent { what }, Into::into));
                    ControlFlow::Break(())
                }
            }
        })?;
        *self.policies.known.write() = known;
        problem.map_or(Ok(()), Err)
    }

    /// How what follows a policy is stored.
    pub fn redundancy_of(&self, policy: PolicyId) -> Redundancy {
        let own = self.pool.redundancy();
        if policy == PolicyId::default() {
            return own;
        }
        self.policies.known.read().get(&policy).copied().unwrap_or(own)
    }

    /// Data and parity shards of a new wide segment that follows a policy, with the devices that take part now.
    pub(crate) fn shards_now(&self, policy: PolicyId) -> (u8, u8) {
        self.pool.shards_now(self.redundancy_of(policy))
    }

    /// Whether anything is stored in another way than the pool stores by itself.
    pub fn has_policies(&self) -> bool {
        !self.policies.known.read().is_empty()
    }

    /// Whether a number stands for something.
    pub fn knows_policy(&self, policy: PolicyId) -> bool {
        policy == PolicyId::default() || self.policies.known.read().contains_key(&policy)
    }

    /// The policy that stores with a redundancy; one is made if there is none yet.
    ///
    /// # Errors
    /// [`PoolError::Impossible`] where the pool has no room for so many shards, or cannot keep the promise; when nothing may
    /// be written.
    pub fn policy_with(&self, redundancy: Redundancy) -> Result<PolicyId, StoreError> {
        if redundancy == self.pool.redundancy() {
            return Ok(PolicyId::default());
        }
        self.pool.allow(redundancy)?;
        self.check_writable()?;
        let _making = self.policies.making.lock();
        let known = self.policies.known.read().clone();
        if let Some((policy, _)) = known.iter().find(|(_, known)| **known == redundancy) {
            return Ok(*policy);
        }
        let last = known.last_key_value().map_or(0, |(policy, _)| policy.0);
        let reason = || "there are as many policies as there can be".to_owned();
        let policy = PolicyId(last.checked_add(1).ok_or_else(|| PoolError::Impossible { reason: reason() })?);
        let Redundancy { shards_data, shards_parity } = redundancy;
        let value = Policy { shards_data, shards_parity }.encode();
        let put = Op::Put { table: Table::Config, key: key_of(policy), value };
        // Whatever follows it comes later in the log.
        self.commit(BranchId(0), vec![put], Vec::new())?;
        self.policies.known.write().insert(policy, redundancy);
        Ok(policy)
    }
}
