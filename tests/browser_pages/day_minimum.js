/**
 * How few mints a day can do with. From first principles: knows nothing of the client or the
 * broker, sees the whole day beforehand, and needs no time for anything.
 *
 * Nothing is minted before somebody asks. A session is replaced at the moment the server named, if
 * the page is awake, reaches the server and is seen; else at the first moment after it when all
 * three hold, or when somebody asks in a hidden tab that has no more than the floor left. Never
 * otherwise.
 */
export function minimum({ changes, asks, end, rotateIn, life, floor }) {
  let mints = 0;
  let segment = 0;
  let ask = 0;
  let due = 0;
  let wanted = 0; // from when on an ask in a hidden tab is a reason
  let first = true;
  for (; segment < changes.length; ) {
    const { at, away, unreachable, hidden } = changes[segment];
    const until = changes[segment + 1]?.at ?? end;
    let moment = Math.max(at, due);
    if (hidden || first) {
      moment = Math.max(moment, wanted);
      while (asks[ask] < moment) ask += 1;
      moment = asks[ask] ?? Infinity;
    }
    if (away || unreachable || moment >= until) {
      segment += 1;
      continue;
    }
    first = false;
    due = moment + rotateIn(mints) * 1000;
    wanted = moment + (life - floor) * 1000;
    mints += 1;
  }
  return mints;
}
