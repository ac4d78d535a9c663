//! A stand-in for Entra ID, Microsoft Graph, ARM with Microsoft Sentinel, and Log Analytics ingestion: the real APIs as
//! far as we know them (`graph.md` §18, `sentinel.md` §22), over HTTP on loopback. The rules live in [`world`], a plain
//! state machine that tests drive without HTTP; the other modules only speak the protocols.

pub mod world;
