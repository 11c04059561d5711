//! The pool's side of a test: production code turns a template into a job, and a solved job into a block.

use otedama_chain::{Assembler, AssemblerSettings, Template, blocks, merkle};
use otedama_primitives::{BlockCandidate, Hash256, JobId, RunId, WorkerId};
use regtest_node::bitcoin::Block;
use regtest_node::bitcoin::consensus::encode::deserialize;
use serde_json::Value;

/// What the miner chose.
#[derive(Debug, Clone, Copy)]
pub struct Work {
    pub job_counter: u32,
    pub extranonce1: u32,
    /// Cut to the size that the job has for it.
    pub extranonce2: u64,
    pub ntime: u32,
    /// Version bits rolled on top of the template's version.
    pub version_bits: u32,
}

/// A block that the pool would submit.
pub struct Solved {
    pub bytes: Vec<u8>,
    pub block: Block,
}

/// Assembles a job of `template`, mines it and puts the block together, all with the pool's code; panics where the
/// pool would refuse.
pub fn solve(template: &Value, settings: AssemblerSettings, work: Work) -> Solved {
    let extranonce2_bits = 8 * u32::from(settings.extranonce2_bytes);
    let assembler = Assembler::new(settings).expect("the settings are valid");
    let template = Template::parse(template).expect("the template is understood");
    let id: JobId = RunId::new(255, 0x00ff_ffff).job(work.job_counter);
    let job = assembler.job(&template, id).expect("a job can be made");
    let mut candidate = BlockCandidate {
        job: id,
        session: 1,
        extranonce1: work.extranonce1,
        extranonce2: work.extranonce2 & (u64::MAX >> (64 - extranonce2_bits)),
        ntime: work.ntime,
        nonce: 0,
        version: job.version | work.version_bits,
        worker: WorkerId(1),
        hash: Hash256([0xff; 32]),
        arrival_us: 0,
    };
    loop {
        let header = blocks::header_of(&job, &candidate).expect("the extranonce fits");
        candidate.hash = merkle::sha256d(&header);
        if job.network_target.is_met_by(&candidate.hash) {
            break;
        }
        candidate.nonce += 1;
    }
    let bytes = assembler.block(&template, &job, &candidate).expect("the block is put together");
    let block: Block = deserialize(&bytes).expect("one whole block");
    Solved { bytes, block }
}
