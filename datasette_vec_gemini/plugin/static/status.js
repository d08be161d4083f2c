// Keeps the figures of a running job current. Without it the page has a link to reload it.
(() => {
  const box = document.querySelector("[data-vec-poll]");
  if (!box) return;
  const numbers = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });
  const job = box.querySelector(".vec-job");

  const show = (root, name, text) => {
    const element = root.querySelector(`[data-vec="${name}"]`);
    if (element && element.textContent !== text) element.textContent = text;
  };

  const left = (seconds) => (seconds < 90 ? `${seconds} s` : `${numbers.format(Math.round(seconds / 60))} min`);

  const update = (status) => {
    const now = status.jobs[0];
    if (`${now.kind} ${now.state}` !== box.dataset.vecState) {
      // Other buttons belong to another state; but nobody's half-written budget is thrown away.
      if (![...document.querySelectorAll('input[name="max_usd"]')].some((input) => input.value)) location.reload();
      return;
    }
    for (const name of ["rows", "indexed", "pending", "failed", "empty"]) {
      show(document, name, numbers.format(status[name]));
    }
    for (const group of ["chunk_states", "building"]) {
      for (const [name, count] of Object.entries(status[group] || {})) {
        if (typeof count === "number") show(document, `${group}.${name}`, numbers.format(count));
      }
    }
    show(job, "state", now.asked ? "ending" : now.state);
    show(job, "stage", { text: "reading rows", vectors: "embedding chunks" }[now.stage] || "starting");
    const bar = job.querySelector("progress");
    if (bar) {
      bar.max = now.total || 1;
      bar.value = now.done;
    }
    const figures = [`${numbers.format(now.done)} of ${numbers.format(now.total)}`];
    if (now.per_second) figures.push(`${numbers.format(now.per_second)} a second`);
    if (now.seconds_left !== null) figures.push(`about ${left(now.seconds_left)} left`);
    show(job, "figures", figures.join(" · "));
  };

  const poll = async () => {
    const started = performance.now();
    try {
      const response = await fetch(box.dataset.vecPoll, { headers: { accept: "application/json" } });
      if (response.ok) update(await response.json());
    } catch {
      // The server may be starting anew; the next time will tell.
    }
    // A large index takes longer to count, and is asked less often.
    setTimeout(poll, Math.max(1000, 5 * (performance.now() - started)));
  };
  setTimeout(poll, 1000);
})();
