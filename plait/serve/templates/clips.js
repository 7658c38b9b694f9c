"use strict";
// Sound for requests: a recording from the microphone as a WAV file, which every server can read.

const RATE = 16000;

async function startRecording() {
  const stream = await navigator.mediaDevices.getUserMedia({audio: true});
  const recorder = new MediaRecorder(stream), pieces = [];
  recorder.ondataavailable = (event) => pieces.push(event.data);
  recorder.start();
  return () => new Promise((resolve) => {
    recorder.onstop = async () => {
      stream.getTracks().forEach((track) => track.stop());
      const bytes = await new Blob(pieces).arrayBuffer();
      const context = new AudioContext();
      const sound = await context.decodeAudioData(bytes);
      context.close();
      const offline = new OfflineAudioContext(1, Math.max(1, Math.ceil(sound.duration * RATE)), RATE);
      const source = offline.createBufferSource();
      source.buffer = sound;
      source.connect(offline.destination);
      source.start();
      const mono = await offline.startRendering();
      resolve(wavOf(mono.getChannelData(0)));
    };
    recorder.stop();
  });
}

function wavOf(samples) {
  const view = new DataView(new ArrayBuffer(44 + 2 * samples.length));
  const word = (at, text) => [...text].forEach((c, i) => view.setUint8(at + i, c.charCodeAt(0)));
  word(0, "RIFF"); view.setUint32(4, 36 + 2 * samples.length, true); word(8, "WAVEfmt ");
  view.setUint32(16, 16, true); view.setUint16(20, 1, true); view.setUint16(22, 1, true);
  view.setUint32(24, RATE, true); view.setUint32(28, 2 * RATE, true); view.setUint16(32, 2, true); view.setUint16(34, 16, true);
  word(36, "data"); view.setUint32(40, 2 * samples.length, true);
  samples.forEach((s, i) => view.setInt16(44 + 2 * i, 32767 * Math.max(-1, Math.min(1, s)), true));
  return new File([view.buffer], "recording.wav", {type: "audio/wav"});
}
