// Tables sort by the column that is clicked, numbers as numbers, what is missing last.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const sort = () => {
      const isFirst = !head.hasAttribute("aria-sort");
      const isText = head.classList.contains("text");
      const rises = isFirst ? isText : head.getAttribute("aria-sort") === "descending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", rises ? "ascending" : "descending");
      const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
      const order = (a, b) => {
        const [one, other] = [key(a), key(b)];
        if (isText) return (rises ? 1 : -1) * one.localeCompare(other, undefined, { numeric: true });
        if (one === "" || other === "") return (one === "") - (other === "");
        return (rises ? 1 : -1) * (Number(one) - Number(other));
      };
      table.tBodies[0].append(...[...table.tBodies[0].rows].sort(order));
    };
    head.tabIndex = 0;
    head.addEventListener("click", sort);
    head.addEventListener("keydown", (event) => { if (event.key === "Enter") sort(); });
  });
}

// The line on the timeline follows the video, and a click on a lane goes to its frame.
for (const section of document.querySelectorAll(".watch")) {
  const video = section.querySelector("video");
  const timeline = section.querySelector(".timeline");
  const times = JSON.parse(section.dataset.times);
  const frames = Number(section.dataset.frames);
  const draw = () => {
    let frame = times.findIndex((time) => time > video.currentTime + 1e-3) - 1;
    if (frame < 0) frame = video.currentTime > 0 ? times.length - 1 : 0;
    timeline.style.setProperty("--at", (frame + 0.5) / frames);
  };
  const follow = () => { draw(); if (!video.paused) requestAnimationFrame(follow); };
  video.addEventListener("play", follow);
  video.addEventListener("seeked", draw);
  draw();
  for (const bars of timeline.querySelectorAll(".bars")) {
    bars.addEventListener("click", (event) => {
      const place = bars.getBoundingClientRect();
      const frame = Math.floor(((event.clientX - place.left) / place.width) * frames);
      video.currentTime = times[Math.max(0, Math.min(frame, times.length - 1))] + 1e-3;
    });
  }
  for (const button of section.querySelectorAll("button[data-rate]")) {
    button.addEventListener("click", () => {
      video.playbackRate = Number(button.dataset.rate);
      section.querySelectorAll("button[data-rate]").forEach((b) => b.setAttribute("aria-pressed", b === button));
      video.play();
    });
  }
}
