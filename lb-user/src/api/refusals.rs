//! Refusals by status, for the document.
#![expect(dead_code, reason = "they only stand for answers that `Error` gives")]

use utoipa::IntoResponses;

use super::Refusal;

/// Something in the request is wrong.
#[derive(IntoResponses)]
#[response(status = 400)]
pub(super) struct Wrong(#[to_schema] Refusal);

/// It names something that isn't there.
#[derive(IntoResponses)]
#[response(status = 404)]
pub(super) struct Missing(#[to_schema] Refusal);

/// It can't be done as things are.
#[derive(IntoResponses)]
#[response(status = 409)]
pub(super) struct Impossible(#[to_schema] Refusal);

/// It should have worked, and did not.
#[derive(IntoResponses)]
#[response(status = 500)]
pub(super) struct Broken(#[to_schema] Refusal);
