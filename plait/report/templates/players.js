// Runs the players of this page: a button and a wave in place of the browser's own.

document.querySelectorAll(".player").forEach((player) => {
  const [audio, button, wave] = ["audio", "button", ".wave"].map((name) => player.querySelector(name));
  const slider = wave.querySelector("input");
  const played = wave.querySelector("svg").cloneNode(true);
  played.classList.add("played");
  wave.insertBefore(played, slider);
  audio.controls = false;
  audio.hidden = true;
  button.hidden = wave.hidden = false;

  const name = button.getAttribute("aria-label").replace("Play ", "");
  const show = () => {
    const share = audio.duration ? audio.currentTime / audio.duration : 0;
    slider.value = share;
    wave.style.setProperty("--done", 100 * share + "%");
    if (!audio.paused) requestAnimationFrame(show);
  };
  button.addEventListener("click", () => (audio.paused ? audio.play().catch(() => {}) : audio.pause()));
  slider.addEventListener("input", () => { audio.currentTime = slider.value * (audio.duration || 0); show(); });
  audio.addEventListener("play", () => {
    document.querySelectorAll("audio").forEach((other) => other !== audio && other.pause());
    player.classList.add("playing");
    button.setAttribute("aria-label", "Pause " + name);
    show();
  });
  for (const event of ["pause", "ended"]) audio.addEventListener(event, () => {
    player.classList.remove("playing");
    button.setAttribute("aria-label", "Play " + name);
    if (event === "ended") { audio.currentTime = 0; show(); }
  });
});
